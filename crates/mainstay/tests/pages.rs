//! Pages that are written from the code: what stands in `docs/` is what the code says.

#[test]
fn the_page_on_configuration_is_what_the_table_of_keys_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let page = mainstay_model::config_reference::page();
    if std::env::var_os("MAINSTAY_WRITE_PAGES").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page,
        "docs/configuration.md is not what the table says: write it anew with\n  MAINSTAY_WRITE_PAGES=1 cargo test -p mainstay --test pages"
    );
}
