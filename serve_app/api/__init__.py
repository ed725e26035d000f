"""The HTTP room: schemas, routes, status table and streaming. Knows neither Ray nor models."""
