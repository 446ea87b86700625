"""Load generators: `trifocal bench serve` over HTTP, `trifocal bench throughput` offline."""
