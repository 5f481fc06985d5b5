def test_restore(check_then_time, case, contender):
    check_then_time(case, contender)
