"""Tell who asks: by a key, a signed token, or a direct loopback connection."""
