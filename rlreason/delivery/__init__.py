"""How weights travel: packed, versioned and checked, through host memory or by a broadcast of their own group."""
