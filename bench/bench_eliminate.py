def test_eliminate(check_then_time, case, contender):
    check_then_time(case, contender)
