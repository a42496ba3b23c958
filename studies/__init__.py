"""Studies: variants of a recipe, run fold by fold and set side by side."""
