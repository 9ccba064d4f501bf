"""The ledger: what customers owe and what was sold, by entries that are only added to. The database itself writes them."""
