"""What became of a job? A page with pictures, and the same as JSON and CSV, from the record at the destination."""
