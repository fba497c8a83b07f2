"""The gateway: a small REST server in front of Triton, for browsers, curl and whoever has no gRPC client.

`python -m serving.gateway` starts it. It asks Triton through the Python client and forwards no byte of a request as it
came, so what is malformed ends here, and nothing of Triton but inference can be reached through it.
"""
