"""The demo Space: a checkpoint in the browser (`python space/app.py --model PATH_OR_HUB_NAME`)."""
