"""Text in and out: tokenisers and chat templates, the same in CPython and in the browser."""
