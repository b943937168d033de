"""Raw data to prepared set: listing, layouts, manifest, faces, splits."""
