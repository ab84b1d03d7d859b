"""Where a picture on a page is, once the browser has decoded it."""


def picture_on(page, selector):
    """Return the first image at a selector with its box and its own width and height.

    An image that is just being replaced has a box, but no width and height yet.
    """
    picture = page.locator(f"{selector} img").first
    picture.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    size = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    return picture, picture.bounding_box(), size
