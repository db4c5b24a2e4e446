"""What hears of the steps of a run: records, trackers, progress, throughput."""
