"""Who trains particles: `bella.fit`, thin on top of a transport and an ordinary optimiser."""
