"""`strlab serve`: the web page and the HTTP API."""
