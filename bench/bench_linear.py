def test_linear(check_then_time, case, contender):
    check_then_time(case, contender)
