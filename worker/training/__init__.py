"""How does the service train? Runs in the ledger, data from any storage, weights into the registry."""
