//! Cellar: virtual clusters over the real decision code
