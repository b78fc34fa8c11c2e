"""The development server: Fanlight's page, its Python for the browser, local model files. Extra ``server``."""
