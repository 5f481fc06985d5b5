"""The paper's tables and figures as commands: ours beside those it prints."""
