async def test_x(sandbox, offer):
    pass
