"""What stores of objects in buckets share: names, formats of what is stored, requests over HTTP, streams of answers."""
