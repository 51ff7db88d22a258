"""What the operations share: launches, tiles of products, keys and bits of similarity rows, pairs to look at."""
