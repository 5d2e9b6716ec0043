"""May a request run? The only way from the HTTP layer to the service leads through here."""
