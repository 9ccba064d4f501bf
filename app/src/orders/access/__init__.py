"""Who may do what: access tokens of the identity provider, verified in this process."""
