"""The node as a service: loads plugins, serves the API, watches the instances."""
