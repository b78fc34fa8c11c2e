"""Where model files come from: local paths and URLs, and the folder that keeps downloads."""
