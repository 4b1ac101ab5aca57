"""Looking after a store: check every byte, set aside what fails, remove what nobody needs."""
