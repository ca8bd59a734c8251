"""One function a section: plain data in, :class:`flowgrain.report.page.Section` out, None where there is nothing."""
