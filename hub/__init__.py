"""Publishing a run to the Hugging Face Hub: cards, staging, upload, verification."""
