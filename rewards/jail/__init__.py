"""The jail: untrusted programs in processes that can see, reach and use little."""
