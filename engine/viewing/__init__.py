"""A viewer of outputs in the browser: tiles of the Zarr pyramid on demand, over HTTP, and the page that shows them."""
