"""What was made, judged and delivered: an append-only log of events, and bytes by digest."""
