"""What a load test leaves behind: the table on the terminal, `report.json` and `report.html`.

`results` is what is handed in. All of this is pure but for `write`.
"""
