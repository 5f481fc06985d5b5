def test_decode(check_then_time, case, contender):
    check_then_time(case, contender)
