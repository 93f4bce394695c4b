"""Model adapters: how samples become what a decoder sees, one room per family."""
