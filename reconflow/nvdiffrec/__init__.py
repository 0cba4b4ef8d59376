"""nvdiffrec: geometry and texture fitted to the views through the differentiable renderer."""
