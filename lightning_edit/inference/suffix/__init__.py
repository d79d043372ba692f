"""Forward passes of the layers behind the edited one, at the positions that change."""
