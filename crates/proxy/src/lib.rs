//! Proxy: client connections follow the route
