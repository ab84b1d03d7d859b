"""Every page as it opens on a telephone; what each does when used is tested page by page, at this width if slow."""

import pytest


# What a page shows once its model has answered.
READY = {
    "dense_features": "#similar img",
    "open_vocabulary_segmentation": "#masks figcaption",
    "correspondence": "#text p",
    "video_tracking": "#frame img",
    "image_search": "#found img",
}


@pytest.mark.parametrize("window", [390], indirect=True)
@pytest.mark.parametrize("name", READY)
def test_nothing_is_wider_than_a_telephone(name, tab, serve):
    tab.goto(serve(name))
    tab.wait_for_selector(READY[name])
