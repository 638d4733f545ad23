"""Keys and configuration with which nodes and clients let each other in, over Zenoh."""
