"""What a run writes and watches while it trains: its folder, checkpoint, metrics, times and label quality."""
