"""One module a dashboard, one function a panel."""
