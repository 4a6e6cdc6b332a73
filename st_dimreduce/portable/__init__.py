"""The portable form: reduced models in the file layout that every reader knows."""
