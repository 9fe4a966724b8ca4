"""The API side: routes, streaming, admission, routing. Never imports torch."""
