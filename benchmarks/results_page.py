def write_page(page, out, titles):
    pass
