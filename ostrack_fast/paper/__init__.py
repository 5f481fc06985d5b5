"""The paper's tables as commands: our figures beside those it prints."""
