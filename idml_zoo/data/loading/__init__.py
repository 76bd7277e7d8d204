"""What training reads batches from: samplers, a cache of decoded images, streams of large tables."""
