"""The wire types, under the path that the published SDK generates them to."""
