"""Tell what happens to jobs without being asked: streams of events, webhooks."""
