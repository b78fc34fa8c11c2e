"""The development server: Fanlight's page, its Python, local model files. Extra ``server``."""
